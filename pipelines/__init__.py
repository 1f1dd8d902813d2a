"""The kitchen: raw interactions and raw item content become batches (numpy; never jax)."""
