// Here is no macOS whose version something could be too new for.
#pragma once

#define API_AVAILABLE(...)
