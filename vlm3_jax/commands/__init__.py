"""The commands, a file for each group: `add(parsers)` brings their options, and what runs them imports late."""
