"""The kvnet daemon: hosts a model, keeps memories, talks to peers."""
