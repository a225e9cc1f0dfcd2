"""The segmentation network: the pipeline object, its training, its use on images and slides."""
