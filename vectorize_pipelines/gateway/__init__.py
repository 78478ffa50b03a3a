"""What stands between the network and the web servers of the project."""
