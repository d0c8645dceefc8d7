"""What goes into versions and comes out: files, states, and parts of them."""
