"""Engine `torch`: BERT-like encoders on CUDA, MPS and the CPU."""
