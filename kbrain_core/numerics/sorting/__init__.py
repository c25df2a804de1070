"""Raw tiles: what they are, where they belong, how good they are."""
