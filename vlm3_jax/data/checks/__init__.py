"""What `vlm3 data check` looks at: one file a kind of evidence, each read record by record."""
