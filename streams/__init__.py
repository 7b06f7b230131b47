"""What is learned from (App. B): streams of tasks, of VGGSound, AudioSet, AVE and the built-in shapes."""
