"""What people do on the node itself: notes of the node, also with nobody in reach. Each says what it touches, or is refused
with nothing changed."""
