"""The two papers: what they print (data), how each of their tables is run here, and whether it held."""
