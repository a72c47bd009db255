"""What packshot is run with: images, manifests, dashboards, and jobs on other systems."""
