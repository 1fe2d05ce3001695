// A pattern becomes a regular expression without assertions, for whatever stands before a place is
// known, and whatever follows can be demanded or ruled out (AND, NOT). Its derivatives by
// characters (Brzozowski) are the states of a machine that is never in two states at once, and each
// state is a rule of the grammar: the sampler follows one path, however long the text.

#include "seams/patterns.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace {

// Beyond these a pattern is refused: it would take long, or much memory, or a deep stack.
const size_t MOST_BYTES = 8192;
const int MOST_NESTED = 100;
const int MOST_COUNTED = 100000;
const size_t MOST_STATES = 5000;
const size_t MOST_NODES = 100000;
const size_t MOST_STEPS = 2000000;

[[noreturn]] void refuse(const std::string & why) {
    throw std::invalid_argument(why);
}

[[noreturn]] void refuse_size() {
    refuse("it is too large for a grammar");
}

// Sets of characters: ranges of code points, ascending, apart, both ends included.

using character = uint32_t;
using characters = std::vector<std::pair<character, character>>;

const character LAST = 0x10FFFF;
const characters EVERY = { { 0, LAST } };
const characters DIGITS = { { '0', '9' } };
const characters WORDS = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
const characters SPACES = { { 9, 13 },          { 0x20, 0x20 },     { 0xA0, 0xA0 },
                            { 0x1680, 0x1680 }, { 0x2000, 0x200A }, { 0x2028, 0x2029 },
                            { 0x202F, 0x202F }, { 0x205F, 0x205F }, { 0x3000, 0x3000 },
                            { 0xFEFF, 0xFEFF } };
const characters LINE_ENDS = { { '\n', '\n' }, { '\r', '\r' }, { 0x2028, 0x2029 } };

characters united(characters set, const characters & other) {
    set.insert(set.end(), other.begin(), other.end());
    std::sort(set.begin(), set.end());
    characters out;
    for (const auto & [first, last] : set) {
        if (!out.empty() && first <= out.back().second + 1) {
            out.back().second = std::max(out.back().second, last);
        } else {
            out.push_back({ first, last });
        }
    }
    return out;
}

characters others(const characters & set) {
    characters out;
    character from = 0;
    for (const auto & [first, last] : set) {
        if (first > from) {
            out.push_back({ from, first - 1 });
        }
        from = last + 1;
    }
    if (from <= LAST) {
        out.push_back({ from, LAST });
    }
    return out;
}

characters common(const characters & set, const characters & other) {
    return others(united(others(set), others(other)));
}

bool has(const characters & set, character c) {
    for (const auto & [first, last] : set) {
        if (first <= c && c <= last) {
            return true;
        }
    }
    return false;
}

// What is written: the tree of a pattern.

struct written {
    enum { SET, SEQUENCE, CHOICE, REPEAT, AHEAD, START, END, BOUNDARY } kind = SEQUENCE;
    characters set;
    std::vector<written> parts;
    int least = 1, most = 1; // of REPEAT; -1 for any number
    bool negative = false;   // of AHEAD and BOUNDARY
    bool asserts = false;    // whether anything in it matches a place, and no character
};

written one_of(characters set) {
    written out;
    out.kind = written::SET;
    out.set = std::move(set);
    return out;
}

class reader {
  public:
    explicit reader(const std::string & pattern) {
        if (pattern.size() > MOST_BYTES) {
            refuse_size();
        }
        for (size_t i = 0; i < pattern.size();) {
            const auto byte = (unsigned char)pattern[i++];
            const int more = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : byte >= 0xC0 ? 1 : 0;
            character c = more == 0 ? byte : byte & (0x3F >> more);
            for (int k = 0; k < more && i < pattern.size(); k++) {
                c = c << 6 | (pattern[i++] & 0x3F);
            }
            text.push_back(c);
        }
    }

    written all() {
        written out = choice();
        if (at < text.size()) {
            refuse("a ) closes nothing");
        }
        return out;
    }

  private:
    std::vector<character> text;
    size_t at = 0;
    int depth = 0;

    bool next_is(const char * what) const {
        size_t i = at;
        for (; *what != 0; what++, i++) {
            if (i >= text.size() || text[i] != (unsigned char)*what) {
                return false;
            }
        }
        return true;
    }

    bool take(const char * what) {
        if (!next_is(what)) {
            return false;
        }
        at += std::char_traits<char>::length(what);
        return true;
    }

    character next(const char * what) {
        if (at >= text.size()) {
            refuse(std::string("it ends within ") + what);
        }
        return text[at++];
    }

    written choice() {
        if (++depth > MOST_NESTED) {
            refuse("its groups are nested too deeply");
        }
        written out;
        out.kind = written::CHOICE;
        do {
            out.parts.push_back(sequence());
            out.asserts |= out.parts.back().asserts;
        } while (take("|"));
        depth--;
        return out;
    }

    written sequence() {
        written out;
        while (at < text.size() && !next_is("|") && !next_is(")")) {
            out.parts.push_back(repeated());
            out.asserts |= out.parts.back().asserts;
        }
        return out;
    }

    written repeated() {
        const size_t start = at;
        written what = single();
        int least = 1, most = 1;
        if (!quantity(least, most)) {
            return what;
        }
        if (what.kind >= written::AHEAD) {
            refuse("a quantifier follows " + quoted(start, at) + ", which has no characters");
        }
        take("?"); // as few as possible: the same texts match
        int again;
        if (quantity(again, again)) {
            refuse("a quantifier follows a quantifier");
        }
        written out;
        out.kind = written::REPEAT;
        out.asserts = what.asserts;
        out.parts.push_back(std::move(what));
        out.least = least;
        out.most = most;
        return out;
    }

    bool quantity(int & least, int & most) {
        if (take("*")) {
            least = 0, most = -1;
        } else if (take("+")) {
            least = 1, most = -1;
        } else if (take("?")) {
            least = 0, most = 1;
        } else if (take("{")) {
            least = most = number();
            if (take(",")) {
                most = next_is("}") ? -1 : number();
            }
            if (!take("}") || (most >= 0 && most < least)) {
                refuse("a { isn't followed by numbers and }");
            }
        } else {
            return false;
        }
        return true;
    }

    int number() {
        if (at >= text.size() || !has(DIGITS, text[at])) {
            refuse("a { isn't followed by numbers and }");
        }
        int out = 0;
        while (at < text.size() && has(DIGITS, text[at])) {
            out = std::min(out * 10 + (int)(text[at++] - '0'), MOST_COUNTED + 1);
        }
        if (out > MOST_COUNTED) {
            refuse_size();
        }
        return out;
    }

    written single() {
        written out;
        if (take("(")) {
            return group();
        }
        if (take("[")) {
            return one_of(bracketed());
        }
        if (take(".")) {
            return one_of(others(LINE_ENDS));
        }
        if (next_is("^") || next_is("$")) {
            out.kind = take("^") ? written::START : (at++, written::END);
            out.asserts = true;
            return out;
        }
        if (next_is("\\b") || next_is("\\B")) {
            out.kind = written::BOUNDARY;
            out.negative = next_is("\\B");
            out.asserts = true;
            at += 2;
            return out;
        }
        if (take("\\")) {
            return one_of(escaped(false));
        }
        if (next_is("*") || next_is("+") || next_is("?")) {
            refuse(quoted(at, at + 1) + " follows nothing that it could repeat");
        }
        if (next_is("{") || next_is("}") || next_is("]")) {
            refuse(quoted(at, at + 1) + " has no partner; write \\" + utf8(text[at]));
        }
        const character c = text[at++];
        return one_of({ { c, c } });
    }

    written group() {
        const size_t start = at - 1;
        written out;
        if (next_is("?=") || next_is("?!")) {
            out.kind = written::AHEAD;
            out.negative = next_is("?!");
            out.asserts = true;
            at += 2;
            out.parts.push_back(choice());
        } else {
            if (next_is("?<=") || next_is("?<!")) {
                refuse("looking behind, " + quoted(start, at + 3) + ", isn't supported");
            }
            if (take("?<")) {
                while (next("the name of a group") != '>') {
                }
            } else if (!take("?:") && next_is("?")) {
                refuse("a group that begins with " + quoted(start, at + 2) + " isn't supported");
            }
            out = choice();
        }
        if (!take(")")) {
            refuse("a ( isn't closed");
        }
        return out;
    }

    characters bracketed() {
        const bool negative = take("^");
        characters out;
        while (!take("]")) {
            bool single_first = false, single_last = false;
            characters first = member(single_first);
            if (next_is("-") && !(at + 1 < text.size() && text[at + 1] == ']')) {
                take("-");
                const characters last = member(single_last);
                if (!single_first || !single_last || last[0].first < first[0].first) {
                    refuse("a range in [] doesn't go from one character to a later one");
                }
                first[0].second = last[0].first;
            }
            out = united(out, first);
        }
        return negative ? others(out) : out;
    }

    characters member(bool & single) {
        const character c = next("[]");
        if (c == '\\') {
            const characters out = escaped(true);
            single = out.size() == 1 && out[0].first == out[0].second;
            return out;
        }
        single = true;
        return { { c, c } };
    }

    // What follows a backslash, which has been read.
    characters escaped(bool in_brackets) {
        const size_t start = at - 1;
        const character c = next("an escape");
        switch (c) {
        case 'd':
            return DIGITS;
        case 'D':
            return others(DIGITS);
        case 'w':
            return WORDS;
        case 'W':
            return others(WORDS);
        case 's':
            return SPACES;
        case 'S':
            return others(SPACES);
        case 't':
            return { { '\t', '\t' } };
        case 'n':
            return { { '\n', '\n' } };
        case 'v':
            return { { '\v', '\v' } };
        case 'f':
            return { { '\f', '\f' } };
        case 'r':
            return { { '\r', '\r' } };
        case 'x':
            return code(start, 2);
        case 'u':
            return unicode(start);
        case 'c': {
            const character letter = next("\\c") | 0x20;
            if (letter < 'a' || letter > 'z') {
                refuse(quoted(start, at) + " isn't supported");
            }
            return { { letter & 0x1F, letter & 0x1F } };
        }
        case '0':
            if (at == text.size() || !has(DIGITS, text[at])) {
                return { { 0, 0 } };
            }
            break;
        case 'b':
            if (in_brackets) {
                return { { '\b', '\b' } };
            }
            break;
        default:
            if (c < 0x80 && !has(WORDS, c)) {
                return { { c, c } };
            }
        }
        if (has(DIGITS, c) || c == 'k') {
            refuse(quoted(start, at) + ", what a group matched before, can't be said by a grammar");
        }
        refuse(quoted(start, at) + " isn't supported");
    }

    characters code(size_t start, int digits) {
        character c = 0;
        for (int i = 0; i < digits; i++) {
            c = c * 16 + hexadecimal(start, next("an escape"));
        }
        return { { c, c } };
    }

    characters unicode(size_t start) {
        characters out;
        if (take("{")) {
            character c = 0;
            for (character digit; (digit = next("\\u{}")) != '}';) {
                c = std::min(c * 16 + hexadecimal(start, digit), LAST + 1);
            }
            if (c > LAST) {
                refuse(quoted(start, at) + " is no character");
            }
            return { { c, c } };
        }
        out = code(start, 4);
        const character high = out[0].first;
        if (high >= 0xD800 && high < 0xDC00 && take("\\u")) {
            const character low = code(start, 4)[0].first;
            if (low < 0xDC00 || low > 0xDFFF) {
                refuse(quoted(start, at) + " is no character");
            }
            const character c = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            out = { { c, c } };
        }
        return out;
    }

    character hexadecimal(size_t start, character digit) {
        if (has(DIGITS, digit)) {
            return digit - '0';
        }
        const character letter = digit | 0x20;
        if (letter < 'a' || letter > 'f') {
            refuse(quoted(start, at) + " isn't a number in hexadecimal digits");
        }
        return letter - 'a' + 10;
    }

    static std::string utf8(character c) {
        if (c < 0x80) {
            return std::string(1, (char)c);
        }
        std::string out;
        const int more = c > 0xFFFF ? 3 : c > 0x7FF ? 2 : 1;
        out += (char)((0xF0 << (3 - more)) | (c >> (6 * more)));
        for (int k = more; k-- > 0;) {
            out += (char)(0x80 | (c >> (6 * k) & 0x3F));
        }
        return out;
    }

    std::string quoted(size_t from, size_t to) const {
        std::string out;
        for (size_t i = from; i < std::min(to, text.size()); i++) {
            out += utf8(text[i]);
        }
        return out;
    }
};

// Expressions, each held once: equal ones have the same number.

using expression = int;

class expressions {
  public:
    enum kind { NONE, EMPTY, SET, THEN, OR, AND, NOT, REPEAT };

    expression none, empty, all;

    expressions() {
        none = intern({ NONE, {}, {}, 0, 0 });
        empty = intern({ EMPTY, {}, {}, 0, 0 });
        all = repeat(set(EVERY), 0, -1);
    }

    expression set(const characters & of) {
        return of.empty() ? none : intern({ SET, of, {}, 0, 0 });
    }

    expression then(expression first, expression second) {
        if (first == none || second == none) {
            return none;
        }
        if (first == empty || second == empty) {
            return first == empty ? second : first;
        }
        return intern({ THEN, {}, { first, second }, 0, 0 });
    }

    expression either(const std::vector<expression> & parts) {
        return flat(OR, parts, none, all);
    }

    expression both(const std::vector<expression> & parts) {
        return flat(AND, parts, all, none);
    }

    expression no(expression of) {
        if (of == none || of == all) {
            return of == none ? all : none;
        }
        return nodes[of].what == NOT ? nodes[of].parts[0] : intern({ NOT, {}, { of }, 0, 0 });
    }

    expression repeat(expression of, int least, int most) {
        if (most == 0 || of == empty || (of == none && least == 0)) {
            return empty;
        }
        if (of == none || (least == 1 && most == 1)) {
            return of;
        }
        return intern({ REPEAT, {}, { of }, nullable(of) ? 0 : least, most });
    }

    bool nullable(expression of) const {
        return nodes[of].nullable;
    }

    // Where sets of characters begin or end that this tells apart at its start.
    const std::set<character> & bounds(expression of) {
        const auto found = known_bounds.find(of);
        if (found != known_bounds.end()) {
            return found->second;
        }
        std::set<character> out = { 0 };
        const node & it = nodes[of];
        for (const auto & [first, last] : it.set) {
            out.insert(first);
            out.insert(last + 1);
        }
        for (size_t i = 0; i < it.parts.size(); i++) {
            if (it.what != THEN || i == 0 || nullable(it.parts[0])) {
                const auto & more = bounds(it.parts[i]);
                out.insert(more.begin(), more.end());
            }
        }
        out.erase(LAST + 1);
        return known_bounds[of] = out;
    }

    // What may follow a character.
    expression after(expression of, character c) {
        if (++steps > MOST_STEPS) {
            refuse_size();
        }
        const auto found = known_after.find({ of, c });
        if (found != known_after.end()) {
            return found->second;
        }
        const node it = nodes[of]; // a copy: more nodes move them
        expression out = none;
        std::vector<expression> parts;
        switch (it.what) {
        case NONE:
        case EMPTY:
            break;
        case SET:
            out = has(it.set, c) ? empty : none;
            break;
        case THEN:
            out = then(after(it.parts[0], c), it.parts[1]);
            if (nullable(it.parts[0])) {
                out = either({ out, after(it.parts[1], c) });
            }
            break;
        case OR:
        case AND:
            for (const expression part : it.parts) {
                parts.push_back(after(part, c));
            }
            out = it.what == OR ? either(parts) : both(parts);
            break;
        case NOT:
            out = no(after(it.parts[0], c));
            break;
        case REPEAT:
            out = then(after(it.parts[0], c), repeat(it.parts[0], std::max(it.least - 1, 0),
                                                     it.most < 0 ? -1 : it.most - 1));
        }
        return known_after[{ of, c }] = out;
    }

  private:
    struct node {
        kind what;
        characters set;
        std::vector<expression> parts;
        int least, most;
        bool nullable = false;
        int depth = 0; // how deep after() goes
    };

    std::vector<node> nodes;
    std::map<std::tuple<kind, characters, std::vector<expression>, int, int>, expression> known;
    std::map<expression, std::set<character>> known_bounds;
    std::map<std::pair<expression, character>, expression> known_after;
    size_t steps = 0;

    expression intern(node it) {
        const auto key = std::make_tuple(it.what, it.set, it.parts, it.least, it.most);
        const auto found = known.find(key);
        if (found != known.end()) {
            return found->second;
        }
        const auto & parts = it.parts;
        const auto is_nullable = [&](expression part) { return nodes[part].nullable; };
        switch (it.what) {
        case NONE:
        case SET:
            break;
        case EMPTY:
            it.nullable = true;
            break;
        case OR:
            it.nullable = std::any_of(parts.begin(), parts.end(), is_nullable);
            break;
        case THEN:
        case AND:
            it.nullable = std::all_of(parts.begin(), parts.end(), is_nullable);
            break;
        case NOT:
            it.nullable = !is_nullable(parts[0]);
            break;
        case REPEAT:
            it.nullable = it.least == 0 || is_nullable(parts[0]);
        }
        for (size_t i = 0; i < parts.size(); i++) {
            if (it.what != THEN || i == 0 || is_nullable(parts[0])) {
                it.depth = std::max(it.depth, nodes[parts[i]].depth + 1);
            }
        }
        if (nodes.size() >= MOST_NODES || it.depth > 5 * MOST_NESTED) {
            refuse_size();
        }
        nodes.push_back(std::move(it));
        return known[key] = (expression)nodes.size() - 1;
    }

    // OR and AND: `unit` changes nothing, `absorbing` is all that is left.
    expression flat(kind what, const std::vector<expression> & parts, expression unit,
                    expression absorbing) {
        std::set<expression> rest;
        characters set;
        bool any_set = false;
        std::vector<expression> open(parts);
        while (!open.empty()) {
            const expression part = open.back();
            open.pop_back();
            const node & it = nodes[part];
            if (part == absorbing) {
                return absorbing;
            }
            if (it.what == what) {
                open.insert(open.end(), it.parts.begin(), it.parts.end());
            } else if (it.what == SET) {
                set = !any_set ? it.set : what == OR ? united(set, it.set) : common(set, it.set);
                any_set = true;
            } else if (part != unit) {
                rest.insert(part);
            }
        }
        if (any_set) {
            if (what == AND && set.empty()) {
                return none;
            }
            rest.insert(this->set(set));
        }
        if (what == AND && rest.count(empty) > 0) {
            const auto is_nullable = [&](expression part) { return nullable(part); };
            return std::all_of(rest.begin(), rest.end(), is_nullable) ? empty : none;
        }
        for (const expression part : rest) {
            if (nodes[part].what == NOT && rest.count(nodes[part].parts[0]) > 0) {
                return absorbing;
            }
        }
        if (rest.size() < 2) {
            return rest.empty() ? unit : *rest.begin();
        }
        return intern({ what, {}, { rest.begin(), rest.end() }, 0, 0 });
    }
};

// From the tree to an expression. What stands before a place is one of these.
enum before { START, WORD, OTHER };

// What has to follow, by what stands before it.
using following = std::function<expression(before)>;

class translation {
  public:
    explicit translation(expressions & to) : all(to) {}

    // Texts in which the pattern is found anywhere.
    expression found(const written & pattern) {
        const following anything = [this](before) { return all.all; };
        const expression at_start = whole(pattern, START, anything);
        const expression after_word = whole(pattern, WORD, anything);
        const expression after_other = whole(pattern, OTHER, anything);
        if (at_start == after_word && at_start == after_other) {
            return all.then(all.all, at_start);
        }
        return all.either({ at_start, all.then(ending(WORDS), after_word),
                            all.then(ending(others(WORDS)), after_other) });
    }

  private:
    expressions & all;
    size_t steps = 0;
    int depth = 0;

    expression ending(const characters & set) {
        return all.then(all.all, all.set(set));
    }

    following remembered(following what) {
        auto known = std::make_shared<std::map<before, expression>>();
        return [known, what = std::move(what)](before place) {
            const auto found = known->find(place);
            return found != known->end() ? found->second : (*known)[place] = what(place);
        };
    }

    // Of what asserts nothing.
    expression plain(const written & it) {
        std::vector<expression> parts;
        for (const written & part : it.parts) {
            parts.push_back(plain(part));
        }
        switch (it.kind) {
        case written::SET:
            return all.set(it.set);
        case written::CHOICE:
            return all.either(parts);
        case written::REPEAT:
            return all.repeat(parts[0], it.least, it.most);
        default:
            return in_order(parts, all.empty);
        }
    }

    expression in_order(const std::vector<expression> & parts, expression out) {
        for (size_t i = parts.size(); i-- > 0;) {
            out = all.then(parts[i], out);
        }
        return out;
    }

    // A part, and what has to follow it.
    expression whole(const written & it, before place, const following & rest) {
        if (++steps > MOST_NODES || depth > 2 * MOST_NESTED) {
            refuse_size();
        }
        depth++;
        const expression out =
            it.asserts ? asserting(it, place, rest) : without_assertions(plain(it), place, rest);
        depth--;
        return out;
    }

    expression asserting(const written & it, before place, const following & rest) {
        std::vector<expression> parts;
        switch (it.kind) {
        case written::START:
            return place == ::START ? rest(place) : all.none;
        case written::END:
            return all.both({ all.empty, rest(place) });
        case written::BOUNDARY: {
            expression word_next = all.then(all.set(WORDS), all.all);
            if ((place == WORD) != it.negative) {
                word_next = all.no(word_next);
            }
            return all.both({ word_next, rest(place) });
        }
        case written::AHEAD: {
            expression ahead = whole(it.parts[0], place, [this](before) { return all.all; });
            return all.both({ it.negative ? all.no(ahead) : ahead, rest(place) });
        }
        case written::CHOICE:
            for (const written & part : it.parts) {
                parts.push_back(whole(part, place, rest));
            }
            return all.either(parts);
        case written::REPEAT:
            return repeated(it, it.least, it.most, place, rest);
        default:
            return sequence(it, 0, place, rest);
        }
    }

    expression without_assertions(expression it, before place, const following & rest) {
        const expression word = rest(WORD), other = rest(OTHER);
        if (word == other && (!all.nullable(it) || rest(place) == word)) {
            return all.then(it, word);
        }
        return all.either({ all.nullable(it) ? rest(place) : all.none,
                            all.then(all.both({ it, ending(WORDS) }), word),
                            all.then(all.both({ it, ending(others(WORDS)) }), other) });
    }

    expression sequence(const written & it, size_t from, before place, const following & rest) {
        std::vector<expression> parts;
        while (from < it.parts.size() && !it.parts[from].asserts) {
            parts.push_back(plain(it.parts[from++]));
        }
        if (!parts.empty()) {
            return without_assertions(
                in_order(parts, all.empty), place,
                from == it.parts.size() ? rest : remembered([&it, from, &rest, this](before now) {
                    return sequence(it, from, now, rest);
                }));
        }
        if (from == it.parts.size()) {
            return rest(place);
        }
        return whole(it.parts[from], place, remembered([&it, from, &rest, this](before now) {
                         return sequence(it, from + 1, now, rest);
                     }));
    }

    expression repeated(const written & it, int least, int most, before place,
                        const following & rest) {
        if (most < 0 || most > MOST_NESTED) {
            refuse("an anchor, a \\b or a lookahead in what is repeated without end, or often, "
                   "isn't supported");
        }
        if (most == 0) {
            return rest(place);
        }
        const expression more =
            whole(it.parts[0], place, remembered([&it, least, most, &rest, this](before now) {
                      return repeated(it, std::max(least - 1, 0), most - 1, now, rest);
                  }));
        return least > 0 ? more : all.either({ more, rest(place) });
    }
};

// From the expression to the grammar.

std::string hex(character c, int digits) {
    std::string out;
    while (digits-- > 0) {
        out += "0123456789ABCDEF"[c >> (4 * digits) & 15];
    }
    return out;
}

std::string member(character c) {
    if (has(WORDS, c) && c != '_') {
        return std::string(1, (char)c);
    }
    return c < 0x100 ? "\\x" + hex(c, 2) : "\\U" + hex(c, 8);
}

std::string bracketed(const characters & set) {
    std::string out = "[";
    for (const auto & [first, last] : set) {
        out += member(first) + (first == last ? "" : "-" + member(last));
    }
    return out + "]";
}

// How a JSON string writes one of the characters.
std::string in_json(const characters & set) {
    static const characters ESCAPED = { { 0, 0x1F }, { '"', '"' }, { '\\', '\\' } };
    static const std::pair<char, char> SHORT[] = { { '"', '"' },  { '\\', '\\' }, { '\b', 'b' },
                                                   { '\t', 't' }, { '\n', 'n' },  { '\f', 'f' },
                                                   { '\r', 'r' } };
    std::vector<std::string> ways;
    const characters plain = common(set, others(ESCAPED));
    if (!plain.empty()) {
        ways.push_back(bracketed(plain));
    }
    characters named, numbered = common(set, { { 0, 0x1F } });
    for (const auto & [c, name] : SHORT) {
        if (has(set, (character)c)) {
            const auto letter = (character)name;
            named = united(named, { { letter, letter } });
            numbered = common(numbered, others({ { (character)c, (character)c } }));
        }
    }
    if (!named.empty()) {
        ways.push_back("\"\\\\\" " + bracketed(named));
    }
    for (const character high : { 0, 1 }) {
        characters low;
        for (character c = 0; c < 16; c++) {
            if (has(numbered, high * 16 + c)) {
                const auto digit = (character) "0123456789abcdef"[c];
                low = united(low, { { digit, digit } });
            }
        }
        if (!low.empty()) {
            ways.push_back("\"\\\\u00" + std::to_string(high) + "\" " + bracketed(low));
        }
    }
    std::string out;
    for (const std::string & way : ways) {
        out += (out.empty() ? "" : " | ") + way;
    }
    return out;
}

struct state {
    expression what;
    std::map<size_t, characters> next; // by characters to other states
    bool alive = false;                // whether a text can end from here
};

std::vector<state> machine(expressions & all, expression start) {
    std::vector<state> out = { { start, {}, false } };
    std::map<expression, size_t> places = { { start, 0 } };
    for (size_t i = 0; i < out.size(); i++) {
        const expression what = out[i].what;
        const std::set<character> bounds = all.bounds(what);
        for (auto from = bounds.begin(); from != bounds.end(); ++from) {
            const expression to = all.after(what, *from);
            if (to == all.none) {
                continue;
            }
            const auto [place, is_new] = places.insert({ to, out.size() });
            if (is_new) {
                out.push_back({ to, {}, false });
            }
            const auto next = std::next(from);
            out[i].next[place->second].push_back(
                { *from, next == bounds.end() ? LAST : *next - 1 });
        }
        if (out.size() > MOST_STATES) {
            refuse_size();
        }
    }
    for (state & it : out) {
        it.alive = all.nullable(it.what);
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = out.size(); i-- > 0;) {
            for (const auto & [to, set] : out[i].next) {
                if (!out[i].alive && out[to].alive) {
                    out[i].alive = changed = true;
                }
            }
        }
    }
    return out;
}

} // namespace

std::string add_pattern_rules(std::map<std::string, std::string> & rules,
                              const std::string & prefix, const std::string & pattern, int least,
                              int most) {
    try {
        expressions all;
        const expression start =
            all.both({ translation(all).found(reader(pattern).all()),
                       all.repeat(all.set(EVERY), least, most < 0 ? -1 : most) });
        const std::vector<state> states = machine(all, start);
        if (!states[0].alive) {
            refuse("no text matches it");
        }
        // Names that no other part of the schema has, whatever its properties are called.
        std::string base = prefix + "-state-";
        for (char & c : base) {
            c = (c >= '0' && c <= '9') || has(WORDS, (unsigned char)c) ? c : '-';
            c = c == '_' ? '-' : c;
        }
        while (rules.count(base + "start") > 0) {
            base += "x-";
        }
        std::map<std::string, std::string> sets; // what stands for them, once each
        for (size_t i = 0; i < states.size(); i++) {
            std::string rule = all.nullable(states[i].what) ? "\"\\\"\"" : "";
            for (const auto & [to, ranges] : states[i].next) {
                if (!states[to].alive) {
                    continue;
                }
                const auto [set, is_new] = sets.insert({ in_json(united({}, ranges)), "" });
                if (is_new) {
                    set->second = base + "set-" + std::to_string(sets.size());
                    rules[set->second] = set->first;
                }
                rule += (rule.empty() ? "" : " | ") + set->second + " " + base + std::to_string(to);
            }
            if (states[i].alive) {
                rules[base + std::to_string(i)] = rule;
            }
        }
        rules[base + "start"] = "\"\\\"\" " + base + "0";
        return base + "start";
    } catch (const std::invalid_argument & e) {
        refuse("the pattern " + pattern + " can't be kept to: " + e.what());
    }
}

std::string pattern_of_format(const std::string & format) {
    static const std::string BYTE = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
    static const std::string IPV4 = BYTE + "(?:\\." + BYTE + "){3}";
    static const std::string LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    static const std::string HOSTNAME = LABEL + "(?:\\." + LABEL + ")*";
    static const std::string GROUP = "[0-9A-Fa-f]{1,4}";
    static const std::map<std::string, std::string> PATTERNS = {
        { "ipv4", "^" + IPV4 + "$" },
        { "ipv6", "^(?:(?:G:){7}G|(?:G:){1,7}:|(?:G:){1,6}:G|(?:G:){1,5}(?::G){1,2}|"
                  "(?:G:){1,4}(?::G){1,3}|(?:G:){1,3}(?::G){1,4}|(?:G:){1,2}(?::G){1,5}|"
                  "G:(?::G){1,6}|:(?:(?::G){1,7}|:))$" },
        { "hostname", "^" + HOSTNAME + "$" },
        { "email", "^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" +
                       HOSTNAME + "$" },
        { "duration", "^P(?!$)(?:\\d+W|(?:\\d+Y)?(?:\\d+M)?(?:\\d+D)?"
                      "(?:T(?=\\d)(?:\\d+H)?(?:\\d+M)?(?:\\d+S)?)?)$" },
    };
    const auto found = PATTERNS.find(format);
    if (found == PATTERNS.end()) {
        return "";
    }
    std::string out;
    for (const char c : found->second) {
        out += c == 'G' && format == "ipv6" ? GROUP : std::string(1, c);
    }
    return out;
}
