#include "tree.h"

namespace fastrl::grading {

void Tree::clear() {
    nodes.clear();
    links.clear();
    numbers.clear();
    texts.clear();
    units.clear();
    relations.clear();
    has_letter_unit = false;
}

int32_t Tree::add(Node node, std::initializer_list<int32_t> children) {
    return add(node, std::vector<int32_t>(children));
}

int32_t Tree::add(Node node, const std::vector<int32_t>& children) {
    node.first = static_cast<int32_t>(links.size());
    node.count = static_cast<int32_t>(children.size());
    for (const int32_t child : children) {
        node.flags |= nodes[child].flags & kInherited;
        links.push_back(child);
    }
    nodes.push_back(node);
    return static_cast<int32_t>(nodes.size()) - 1;
}

}  // namespace fastrl::grading
