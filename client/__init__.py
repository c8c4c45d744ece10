"""The hospital's side: it sees images and speaks to the network through one door."""
