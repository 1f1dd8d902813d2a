"""The cellar: what was learned, kept and found again (orbax, safetensors, numpy)."""
