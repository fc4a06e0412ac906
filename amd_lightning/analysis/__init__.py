"""Finished runs into tables and figures."""
