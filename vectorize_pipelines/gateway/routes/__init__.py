"""The routes, a module for each group of them: what they take, and what they answer."""
