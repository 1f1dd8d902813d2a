"""Encoders of raw content, one file a modality, shaped so that published weights map onto them."""
