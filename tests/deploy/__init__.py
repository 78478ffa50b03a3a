"""What deploy/ has for containers and hosts. `python -m tests.deploy.image` builds the images, which takes minutes."""
