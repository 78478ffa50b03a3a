"""Engine `openvino`: BERT-like encoders on the CPU."""
