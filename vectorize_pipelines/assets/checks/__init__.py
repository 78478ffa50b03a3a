"""The checks of the assets: blocking unless they say otherwise, each with what is wrong and how to mend it."""
