"""What the library's speed is worth: each figure against a plain version of the reference path."""
