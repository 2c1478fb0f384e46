"""Files that others write, read for sources and builders alike; nothing that they bring is executed."""
