"""Step 2, storage: volumes in the forms that viewers and archives read."""
