"""The layers in front of the routes: they bound who may call, from where, and how much one caller may take."""
