"""Tables, figures, videos and other people's numbers."""
