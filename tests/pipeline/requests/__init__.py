"""What runs over messages do, with a real broker where it matters: nothing lost, nothing twice, whatever happens."""
