"""Where images come from: folders, archives, tables, tar shards; and how bytes are decoded."""
