"""The demo: a data set it draws itself, taken the whole way by the commands a user types."""
