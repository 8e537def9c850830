"""From a trained network to files for a device, and what runs them."""
