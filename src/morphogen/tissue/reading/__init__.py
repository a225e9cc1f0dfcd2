"""Where tiles and embeddings come from: images and slides, tables, the folders of the published code."""
