"""The Docker engine of target local-docker: calling it, and the image that jobs and endpoints run in."""
