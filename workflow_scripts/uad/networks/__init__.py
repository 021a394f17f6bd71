"""Networks: MONAI's where it has them."""
