"""The connection to the server: keys, enrolment, tasks in, replies out."""
