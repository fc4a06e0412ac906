"""Finished runs of several methods -> tidy tables, statistics and one report."""
