"""What is measured on arrays: probes, codes, predictions, dreams, control."""
