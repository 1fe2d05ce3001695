// A QR code for the terminal (ISO/IEC 18004): what a phone in the same room reads off the screen.
#pragma once

#include <string>

// The text as a QR code of lines of UTF-8, black on white whatever the terminal's colours; empty if
// it is longer than 106 bytes.
std::string qr_code(const std::string & text);
