"""The live server: ``visavis serve``. The only asynchronous code in visavis (extra: ``serve``)."""
