"""What training needs beside the loop: spots as items, the steps of the spatial recipe."""
