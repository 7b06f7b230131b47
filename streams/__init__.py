"""What is learned from (App. B): streams of tasks, of VGGSound, AudioSet, your own videos and the
built-in shapes; and AVE's clips for event localization."""
