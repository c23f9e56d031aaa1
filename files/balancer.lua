-- For HAProxy: requests reach an engine with the model's own name, also if they asked for an alias.

-- Return where the value of the outermost key "model" begins and ends in a body that begins with a JSON object; nothing
-- if it has none, or if that is not text.
local function place_of(body)
    local depth, at, key = 0, 1, nil
    while true do
        at = body:find('[{}%[%],:"]', at)
        if not at then
            return nil
        end
        local byte = body:sub(at, at)
        local after = at + 1
        if byte == '"' then
            local last = at
            repeat
                last = body:find('["\\]', last + 1)
                local escaped = last and body:sub(last, last) == "\\"
                if escaped then
                    last = last + 1
                end
            until not last or not escaped
            if not last then
                return nil
            end
            if depth == 1 then
                if key == "model:" then
                    return at, last
                end
                key = body:sub(at + 1, last - 1)
            end
            after = last + 1
        elseif byte == "{" or byte == "[" then
            depth, key = depth + 1, nil
        elseif byte == "}" or byte == "]" then
            depth, key = depth - 1, nil
        elseif byte == ":" and depth == 1 and key then
            key = key .. ":"
        elseif byte == "," then
            key = nil
        end
        at = after
    end
end

-- "BEGIN END" of the name in a body; "" if it has none.
core.register_converters("model_place", function(body)
    local first, last = place_of(body)
    return first and first .. " " .. last or ""
end)

-- The header's length of a body once the model's own name, in `txn.model`, is in the place that `txn.place` has.
core.register_fetches("renamed_length", function(txn)
    local first, last = txn:get_var("txn.place"):match("^(%d+) (%d+)$")
    local length = txn.f:req_hdr("content-length") - (last - first + 1) + #txn:get_var("txn.model") + 2
    return string.format("%d", length)
end)

-- Put the model's own name there. The length was changed before: a filter is not allowed to once the body is there.
local Renamed = {id = "renamed", flags = filter.FLT_CFG_FL_HTX}
Renamed.__index = Renamed

function Renamed:new()
    return setmetatable({}, Renamed)
end

function Renamed:http_headers(txn, message)
    local place = not message:is_resp() and txn:get_var("txn.place")
    local first, last = (place or ""):match("^(%d+) (%d+)$")
    if first then
        self.first, self.length = tonumber(first), last - first + 1
        self.name = '"' .. txn:get_var("txn.model") .. '"'
        filter.register_data_filter(self, message.channel)
    end
    return filter.CONTINUE
end

function Renamed:http_payload(_, message)
    if self.name then
        message:remove(self.first - 1, self.length)
        message:insert(self.name, self.first - 1)
        self.name = nil
    end
end

core.register_filter("renamed", Renamed, function(made)
    return made
end)
