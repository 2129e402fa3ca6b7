"""The `evaluate` module "avs_segmentation" and the arithmetic that all metrics of this package share."""
