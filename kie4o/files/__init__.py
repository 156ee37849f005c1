"""Files to Kie and images from it."""
