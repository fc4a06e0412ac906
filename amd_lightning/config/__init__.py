"""What may be configured: the schema and its rules."""
