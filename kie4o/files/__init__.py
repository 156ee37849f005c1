"""Files: uploads to Kie, and downloads of its images."""
