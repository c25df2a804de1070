"""Step 1, ingest: what microscopes write comes in."""
