"""What training needs beside the loop: building a model, cached crops, the residual."""
