// In front of log.cpp: errors.cpp says the first error, and leaves out what follows from it.
#pragma once

bool error_is_said(const char * line);
