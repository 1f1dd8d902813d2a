"""TFDS builders, one public data set a file: address, checksum, licence, citation."""
