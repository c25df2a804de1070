"""Files in and out: volumes, tables and the readers of what microscopes write."""
