"""Files of strangers: text in any encoding, tables, documents, what a folder holds."""
